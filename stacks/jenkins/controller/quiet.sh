#!/bin/sh
# What `pannier service move` runs in the controller, by the labels in compose.yml.
#
# quiet.sh begin   no build is started any more; returns when those that run have ended, but for
#                  pipelines: they stop where they are, and go on after the move
# quiet.sh end     builds are started again
#
# ADMIN_PASSWORD_FILE    the password of admin
set -eu

jenkins=${CONTROLLER:-http://localhost:8080}
own=$(mktemp -d)
trap 'rm -rf "$own"' EXIT
# An executor's part of a pipeline is a placeholder; Hudson and its builds know no classes' names.
running="computer/api/xml?depth=1&wrapper=running\
&xpath=//executor/currentExecutable[not(contains(@_class,%22Placeholder%22))]/url"

main() {
  log_in
  case $1 in
    begin)
      change quietDown
      while builds=$(ask "$jenkins/$running") && echo "$builds" | grep -q '<url>'; do
        echo "$builds" | sed 's/<[^>]*>/ /g'
        sleep 1
      done
      [ -n "$builds" ] # else it did not answer
      ;;
    end) change cancelQuietDown ;;
    *) exit 2 ;;
  esac
}

# The password goes by a file: every process of the node may read a command line.
log_in() {
  password=$(sed 's/[\\"]/\\&/g' "${ADMIN_PASSWORD_FILE:-/run/secrets/jenkins_admin_password}")
  (umask 077 && printf 'user = "%s:%s"\n' admin "$password" >"$own/login")
}

ask() {
  curl --config "$own/login" --cookie "$own/cookies" --cookie-jar "$own/cookies" \
    --globoff --silent --show-error --fail --max-time 15 "$@"
}

change() {
  # Jenkins wants proof that a request is not another site's; without this page, it wants none.
  crumb=$(ask 2>/dev/null \
    "$jenkins/crumbIssuer/api/xml?xpath=concat(//crumbRequestField,%22:%22,//crumb)") ||
    crumb='X-Crumb: none'
  ask --header "$crumb" --output /dev/null --request POST "$jenkins/$1"
}

main "$@"
