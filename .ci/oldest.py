"""The oldest versions that settings.ini allows, as constraints for pip: python .ci/oldest.py > oldest.txt.

Of what the package and its users' extras need; tools of developers and of the documentation may be new.
"""

from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
lists = [key for key in settings if key.endswith("requirements") and not key.startswith(("dev_", "docs_"))]
words = {word for key in lists for word in settings[key].split()}
print("\n".join(sorted(word.replace(">=", "==") for word in words if ">=" in word)))
