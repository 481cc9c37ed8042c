"""Make MLflow's account `NEW_USERNAME`; done already is done."""

import os

from mlflow.exceptions import RestException
from mlflow.server.auth.client import AuthServiceClient

client = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])
try:
    client.create_user(os.environ["NEW_USERNAME"], os.environ["NEW_PASSWORD"])
except RestException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
