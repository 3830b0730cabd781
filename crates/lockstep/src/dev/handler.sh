#!/bin/sh
# Pretend software: its state is a file, and moving it takes a moment.
file="$STATE/$LOCKSTEP_MEMBER"
case "$1" in
status)
    read -r state < "$file"
    printf '{"state":"%s"}\n' "${state%% *}"
    ;;
check)
    if [ -e "$STATE/$LOCKSTEP_HOST.refuses" ]; then
        echo "the file $LOCKSTEP_HOST.refuses is there" >&2
        exit 1
    fi
    ;;
commit | undo | stop)
    sleep 0.2
    echo "$LOCKSTEP_TO" > "$file"
    ;;
hold)
    echo "online (clients are held)" > "$file"
    ;;
release)
    echo "online" > "$file"
    ;;
esac
