"""What a gateway is run with: on several machines by the files beside, for a trial by `deploy.trial`."""
