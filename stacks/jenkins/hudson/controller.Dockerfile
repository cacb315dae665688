FROM localhost:5000/hudson-files:1.398
COPY start.sh /opt/hudson/
COPY quiet.sh /usr/local/bin/
COPY --chown=1000:1000 config.xml /var/jenkins_home/
ENV HUDSON_HOME=/var/jenkins_home HOME=/var/jenkins_home
USER 1000
EXPOSE 8080 50000
ENTRYPOINT ["sh", "/opt/hudson/start.sh"]
