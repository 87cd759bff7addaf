"""The API, described: `/openapi.json` and `/asyncapi.json`, made from the constants that the code obeys."""
