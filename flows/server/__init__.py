"""Prefect's server, worker and deployments.

deployments.py  prefect.yaml and the automations, registered with a server
services.py     Prefect's server and worker as services of `gpt2 up`
"""
