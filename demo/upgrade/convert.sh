#!/bin/sh
# Begins to bring a home into a format of its own, and fails in the midst: nothing that the version before can read is left.
set -eu
cd /var/jenkins_home
for job in jobs/*; do
  rm -rf "$job/builds"
  echo '<project2/>' >"$job/config.xml"
done
sync
echo "cannot convert the users" >&2
exit 1
