"""Deploying with Ansible: the collection pannier.cluster, and how it is run from here."""
