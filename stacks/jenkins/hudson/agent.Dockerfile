FROM localhost:5000/hudson-files:1.398
COPY agent.sh /usr/local/bin/
ENTRYPOINT ["sh", "/usr/local/bin/agent.sh"]
