for p in "$@"; do n=$(basename $p .ipynb); bash _edit_do.sh $n $p 2>&1 | grep -v "^png" | cut -c1-220; done
