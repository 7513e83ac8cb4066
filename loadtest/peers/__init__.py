"""This service against general model servers: same weights, same candidates, same core."""
