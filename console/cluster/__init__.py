"""The console on a cluster: RLJobs of many namespaces, read with each person's own Kubernetes token."""
