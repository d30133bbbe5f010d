"""The Kubernetes side of the controller: the RLJob resource and the operator that runs it on KubeRay."""
