"""Images of Hudson 1.398, which became Jenkins, for machines that reach no registry.

It comes from Maven Central; Java, Docker's client, curl, haproxy and the registry that Jenkins' images
are pushed to are Debian's packages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from demo import image, packages
from pannier.lab import Lab
from pannier.lab.errors import LabError
from pannier.lab.process import run

CONTROLLER = "localhost:5000/hudson:1.398"
AGENT = "localhost:5000/hudson-agent:1.398"
DOOR = "localhost:5000/hudson-files:1.398"  # has haproxy, and everything else
REGISTRY = "localhost:5000/debian-registry:1"
STACKS = Path(__file__).parents[1] / "stacks"
USER_ID = 1000

_START = STACKS / "jenkins/hudson/Start.java"
_PACKAGES = (
    "openjdk-17-jre-headless",
    "docker.io",
    "docker-registry",
    "curl",
    "haproxy",
    "busybox-static",
)
_GET = "org.apache.maven.plugins:maven-dependency-plugin:2.8:get"
_WAR = "org.jvnet.hudson.main:hudson-war:1.398:war"
_WAR_SHA256 = "3457c6f5a5ba75f86fd578eeec0c4ba011e542ab64c484e1a92edc2081dcbc37"

# Runs in a root folder with everything and writes a tar of what is needed, links followed.
_PICK = r"""
java=/usr/lib/jvm/java-17-openjdk-amd64
export LD_LIBRARY_PATH=$java/lib # there is no /proc that would tell its programs where they are
programs="/usr/bin/docker /usr/bin/docker-registry /usr/bin/curl /usr/sbin/haproxy"
fonts=$(find /usr/lib -name libfontconfig.so.1) # Java looks for it when Hudson draws
objects=$(find $java -name '*.so')
libraries=$(ldd $programs $fonts $java/bin/java $objects | grep -o '/[^ :]*' | grep -v $java | sort -u)
tar -c --dereference --exclude=cacerts --exclude=man --exclude=docs /bin/busybox $programs \
  $fonts $libraries $java /opt/hudson /etc/fonts /usr/share/fonts
"""
_USERS = f"""\
root:x:0:0::/root:/bin/sh
jenkins:x:{USER_ID}:{USER_ID}::/var/jenkins_home:/bin/sh
"""


def load(lab: Lab) -> None:
    """Put controller, agent, door and registry into every machine of ``lab``."""
    lab.load_image(files(lab.report), tag=DOOR)
    hudson = STACKS / "jenkins/hudson"
    build(
        lab,
        CONTROLLER,
        hudson / "controller.Dockerfile",
        hudson / "start.sh",
        hudson / "config.xml",
        STACKS / "jenkins/controller/quiet.sh",
    )
    build(lab, AGENT, hudson / "agent.Dockerfile", STACKS / "jenkins/agent/agent.sh")
    debian = STACKS / "registry/debian"
    build(lab, REGISTRY, debian / "Dockerfile", debian / "config.yml")


def files(report: packages.Report) -> Path:
    """The images' root folder, made if it is not in the lab's cache."""
    return packages.kept("hudson", recipe=[Path(__file__), _START], make=_make, report=report)


def build(lab: Lab, tag: str, dockerfile: Path, *files: Path) -> None:
    """Build an image of the stacks' files on every machine."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(dockerfile, Path(folder, "Dockerfile"))
        for path in files:
            shutil.copy(path, folder)
        image.build(lab, tag, Path(folder))


def _make(draft: Path) -> Path:
    whole, files = draft / "whole", draft / "files"
    packages.unpack(_PACKAGES, whole)
    home = whole / "opt/hudson"
    run(["javac", "--release", "11", "-d", str(home), str(_START)])
    _war(draft / "repository").rename(home / "hudson.war")
    packages.pick(whole, files, _PICK)
    (files / "bin/java").symlink_to("/usr/lib/jvm/java-17-openjdk-amd64/bin/java")
    (files / "etc/passwd").write_text(_USERS)
    for name in ("root", "var/jenkins_home"):
        (files / name).mkdir(parents=True)
    os.chown(files / "var/jenkins_home", USER_ID, USER_ID)
    return files


def _war(repository: Path) -> Path:
    """Hudson's war, by this host's own Maven, into a local repository of its own."""
    get = [f"-Dmaven.repo.local={repository}", f"-Dartifact={_WAR}", "-Dtransitive=false"]
    run(["mvn", "-q", "-B", _GET, *get], what="mvn dependency:get")
    (war,) = repository.glob("org/jvnet/hudson/**/*.war")
    found = hashlib.sha256(war.read_bytes()).hexdigest()
    if found != _WAR_SHA256:
        raise LabError(f"{_WAR} has the SHA-256 {found}, not {_WAR_SHA256}")
    return war
