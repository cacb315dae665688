# Has git check a repository in /data, then commits, pushes each commit there, and tells its number.
# With "show" it prints "HOST NUMBER" of every commit instead: git finds things missing where it checks a
# repository that is pushed to meanwhile.
set -eu
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=nobody GIT_AUTHOR_EMAIL=nobody GIT_COMMITTER_NAME=nobody GIT_COMMITTER_EMAIL=nobody
repository=/data/repository.git
if [ "${1:-}" ]; then
  exec git -C "$repository" log --format=%s main
fi
if [ ! -e "$repository" ]; then
  git init -q --template= --bare -b main /data/new.git
  # By itself it does not sync single objects.
  git -C /data/new.git config core.fsync all
  git -C /data/new.git config receive.autogc false
  sync -f /data
  mv /data/new.git "$repository"
  sync -f /data
fi
git -C "$repository" fsck --full --strict --no-dangling >&2
# Of a push that lost its power.
find "$repository" -name '*.lock' -exec rm {} +
git clone -q "$repository" /tmp/work 2>/dev/null
cd /tmp/work
n=$(git log --format=%s 2>/dev/null | head -n 1 | cut -d ' ' -f 2)
n=${n:-0}
while :; do
  n=$((n + 1))
  head -c 3000 /dev/urandom >"file-$((n % 50))"
  git add .
  git commit -q -m "$HOST $n"
  git push -q origin HEAD:main
  sync -f "$repository" # git syncs no folder: a branch's new file may not have its name yet
  read -r up rest </proc/uptime
  echo "$HOST $n $up" >>"/told/$TELL"
done
