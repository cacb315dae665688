#!/bin/sh
# pannier-runtime: runc, with a barrier before the sync calls of containers that use held volumes.
#
# An OCI runtime for Docker's daemon.json. It becomes runc or, where `next` names one, another runtime
# that takes runc's arguments. Whatever is not the creation of such a container is left to it at once,
# untouched: no process is started for it here, but one grep for a creation.
python='@PYTHON@'
edit='@EDIT@'
next=@NEXT@
held=/run/pannier/barrier/held

if [ -n "$next" ]; then
  runc=$next
elif [ -x /usr/sbin/runc ]; then
  runc=/usr/sbin/runc
elif [ -x /usr/bin/runc ]; then
  runc=/usr/bin/runc
elif ! runc=$(command -v runc); then
  echo "pannier-runtime: there is no runc in /usr/sbin, /usr/bin or PATH" >&2
  exit 127
fi

# The daemon puts a file for each held volume here before Docker may mount it.
for marker in "$held"/*; do break; done
[ -e "$marker" ] || exec "$runc" "$@"

command=
bundle=.
value_of=
for word; do
  if [ -n "$value_of" ]; then
    [ "$value_of" = bundle ] && bundle=$word
    value_of=
    continue
  fi
  case $command$word in
    --root | --log | --log-format | --criu | --rootless) value_of=other ;;
    -root | -log | -log-format | -criu | -rootless) value_of=other ;;
    -*) ;;
    create | run) command="$word " ;;
    "create --bundle" | "create -bundle" | "create -b" | "create --b") value_of=bundle ;;
    "run --bundle" | "run -bundle" | "run -b" | "run --b") value_of=bundle ;;
    create\ --bundle=* | create\ -bundle=* | create\ -b=* | create\ --b=*) bundle=${word#*=} ;;
    run\ --bundle=* | run\ -bundle=* | run\ -b=* | run\ --b=*) bundle=${word#*=} ;;
    create\ * | run\ *) ;;
    *) exec "$runc" "$@" ;;
  esac
done

[ -n "$command" ] || exec "$runc" "$@"
# Docker mounts a part of a volume (volume-subpath) from a path with the second name.
grep -qsF -e /pannier/mounts/ -e /safe-mount "$bundle/config.json" || exec "$runc" "$@"
exec "$python" -I -S "$edit" "$("$runc" features 2>/dev/null)" "$runc" "$bundle" "$@"
