#!/bin/sh
# Registers this node as an agent, and connects to the controller. `agent.sh healthy` is the health
# check: Swarm then makes an agent anew that its controller does not see, or that has no engine.
#
# CONTROLLER             address of the controller
# AGENT_NAME             name and label of the agent
# AGENT_EXECUTORS        builds at the same time
# AGENT_USER             who registers it, where the controller asks for that
# AGENT_PASSWORD_FILE    and the file with the password
set -eu

own=${AGENT_FOLDER:-/run/agent}
me=$CONTROLLER/computer/$AGENT_NAME

main() {
  mkdir -p $own
  log_in
  # A start can take minutes, and a move or a crash may come at any time.
  until ask --output /dev/null "$CONTROLLER/login"; do sleep 1; done
  if ! ask --output $own/seen "$me/api/json"; then
    register
  elif grep -q '"offline":false' $own/seen; then
    forget_former_self
  fi
  # The controller's address changes with each move: Java must not remember it for half a minute.
  set -- -Dsun.net.inetaddr.ttl=1 -Dsun.net.client.defaultConnectTimeout=5000
  if ask --output $own/agent.jar "$CONTROLLER/jnlpJars/agent.jar"; then
    secret >$own/secret
    exec java "$@" -jar $own/agent.jar -url "$CONTROLLER/" -name "$AGENT_NAME" \
      -secret @$own/secret -webSocket -workDir /agent
  else # Hudson, and the first years of Jenkins
    ask --output $own/agent.jar "$CONTROLLER/jnlpJars/slave.jar"
    exec java "$@" -jar $own/agent.jar -jnlpUrl "$me/slave-agent.jnlp"
  fi
}

# The password goes by a file: every process of the node may read a command line.
log_in() {
  password=$(sed 's/[\\"]/\\&/g' "$AGENT_PASSWORD_FILE")
  (umask 077 && printf 'user = "%s:%s"\n' "$AGENT_USER" "$password" >$own/login)
}

ask() {
  curl --config $own/login --cookie $own/cookies --cookie-jar $own/cookies \
    --silent --fail --max-time 15 "$@"
}

register() {
  type='hudson.slaves.DumbSlave$DescriptorImpl'
  always='hudson.slaves.RetentionStrategy$Always'
  change "$CONTROLLER/computer/doCreateItem" \
    --data-urlencode "name=$AGENT_NAME" --data-urlencode "type=$type" --data-urlencode "json={
      \"name\": \"$AGENT_NAME\", \"type\": \"$type\", \"nodeDescription\": \"\",
      \"numExecutors\": \"$AGENT_EXECUTORS\", \"remoteFS\": \"/agent\", \"mode\": \"NORMAL\",
      \"labelString\": \"docker\", \"nodeProperties\": {\"stapler-class-bag\": \"true\"},
      \"retentionStrategy\": {\"stapler-class\": \"$always\"},
      \"launcher\": {\"stapler-class\": \"hudson.slaves.JNLPLauncher\", \"tunnel\": \"\",
                   \"vmargs\": \"\", \"webSocket\": true}}"
}

# A node without power closes no connection, and a second one of the same name is refused.
forget_former_self() {
  change "$me/doDisconnect" --data 'offlineMessage=started+anew'
}

change() {
  # Jenkins wants proof that a request is not another site's; without this page, it wants none.
  crumb=$(ask "$CONTROLLER/crumbIssuer/api/xml?xpath=concat(//crumbRequestField,%22:%22,//crumb)") ||
    crumb='X-Crumb: none'
  ask --header "$crumb" --output /dev/null "$@"
}

# The first argument that the agent is to be started with.
secret() {
  ask "$me/jenkins-agent.jnlp" | grep -o '<argument>[^<]*' | head -n 1 | cut -d '>' -f 2
}

healthy() {
  docker version >/dev/null
  code=$(ask --output $own/seen --write-out '%{http_code}' "$me/api/json" || true)
  case $code in
    200) grep -q '"offline":false' $own/seen ;;
    404) return 1 ;;
    *) ;; # the controller is away or starts: the agent finds it again
  esac
}

"${1:-main}"
