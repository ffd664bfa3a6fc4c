# usage: _edit_do.sh NAME nbpath  : update, format, export, execute, clean
source /tmp/wt/plots.env
jupytext --to ipynb --update _edit_$1.py -o $2 >/dev/null
ruff check --fix -q $2; ruff format -q $2; nbdev_export && PYTHONWARNINGS=ignore python .ci/execute.py $2 2>&1 | grep -v IPKernel && nbdev_clean --fname $2
rm -f /tmp/plotpng/$1*.png; python _edit_png.py $2 /tmp/plotpng/$1
