#!/bin/sh
# The demo's application: fills its home once, then goes on writing a line every second.
trap 'echo "stopped by TERM" >> /home/keeper/log; exit 0' TERM
cd /home/keeper || exit 1
if [ ! -e filled ]; then
  d=0
  while [ $d -lt 30 ]; do
    mkdir -p "jobs/$d/builds"
    f=0
    while [ $f -lt 100 ]; do
      echo "job $d build $f of $(id -u)" > "jobs/$d/builds/$f.log"
      f=$((f + 1))
    done
    chmod 750 "jobs/$d"
    ln -s "builds/99.log" "jobs/$d/last"
    ln "jobs/$d/builds/0.log" "jobs/$d/first"
    d=$((d + 1))
  done
  touch filled
fi
echo "started on $(cat /etc/hostname)" >> log
while :; do
  date >> log
  sleep 1 &
  wait $!
done
