"Everything about the package is read from settings.ini, which nbdev reads too."

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
# A package index has no files beside the README: there, its links and pictures are those of the repository.
text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
text = re.sub(r"(!\[[^]]*\])\((?!https?:)", rf"\1({cfg['git_url']}/raw/{cfg['branch']}/", text)
text = re.sub(r"\]\((?!https?:|#)", rf"]({cfg['git_url']}/blob/{cfg['branch']}/", text)


def expanded(extra: str) -> list[str]:
    "What an extra asks for; a word in settings.ini that names another extra stands for what that one asks for."
    words = cfg[f"{extra}_requirements"].split()
    return [r for word in words for r in (expanded(word) if f"{word}_requirements" in cfg else [word])]


extras = {name: expanded(name) for name in (key.removesuffix("_requirements") for key in cfg if "_requirements" in key)}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=text,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changes": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
        "Paper": "https://arxiv.org/abs/2210.08942",
    },
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
    package_data={cfg["lib_name"]: ["assets/*", "assets/*/*", "py.typed"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={name: sorted({*listed}) for name, listed in extras.items()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
