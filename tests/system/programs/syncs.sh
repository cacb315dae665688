# Writes files and syncs them, as a script would, and prints how many milliseconds each sync took.
PATH=/usr/bin
for number in $(seq "$2"); do
  echo "record $number" >"$1/record-$number"
  began=$(date +%s%3N)
  case $((number % 3)) in
    0) sync ;;
    1) sync "$1/record-$number" ;;
    2) sync -f "$1" ;;
  esac
  echo $(($(date +%s%3N) - began))
done
