#!/bin/sh
# Starts Hudson 1.398 on Java 17, which keeps inside what the Java of 2011 left open.
set -eu
inside="java.base/java.lang java.base/java.util java.base/java.io java.base/java.lang.reflect
  java.base/java.text java.base/java.net java.base/java.util.concurrent java.base/java.util.zip
  java.base/java.security java.base/java.util.regex java.base/sun.security.x509
  java.base/sun.net.www.protocol.jar java.desktop/java.awt.font java.desktop/java.awt
  java.xml/com.sun.org.apache.xerces.internal.parsers"
for name in $inside; do
  set -- "$@" --add-opens "$name=ALL-UNNAMED"
done
# The unpacked program does not belong into the home: it would be copied to every replica.
exec java -Djava.awt.headless=true -XX:TieredStopAtLevel=1 -Xmx256m "$@" \
  -cp /opt/hudson:/opt/hudson/hudson.war Start \
  --httpPort=8080 --httpsPort=-1 --ajp13Port=-1 --webroot=/tmp/war
