{{- define "crescendo.labels" -}}
app.kubernetes.io/name: crescendo
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: crescendo
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.global.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "crescendo.selector" -}}
app.kubernetes.io/name: crescendo
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "crescendo.image" -}}
{{- $tag := .image.tag | default .root.Chart.AppVersion -}}
{{- $name := .image.repository -}}
{{- with .root.Values.global.imageRegistry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if .image.digest }}{{ printf "%s@%s" $name .image.digest }}{{ else }}{{ printf "%s:%s" $name $tag }}{{ end -}}
{{- end }}

{{- define "crescendo.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "crescendo.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* What every pod of ours has: no token unless it asks for one, no GPU, room in /tmp. */ -}}
{{- define "crescendo.podCommon" -}}
enableServiceLinks: false
securityContext: {{- include "crescendo.podSecurity" . | nindent 2 }}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "crescendo.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "crescendo.selector" . | fromYaml | toJson }}}
{{- end }}

{{- define "crescendo.name" -}}
{{ printf "%s-%s" .root.Release.Name .component }}
{{- end }}

{{- define "crescendo.valkeySecret" -}}
{{ .Values.valkey.existingSecret | default (printf "%s-valkey" .Release.Name) }}
{{- end }}

{{- /* Autoscaler and disruption budget of a Deployment with several replicas. */ -}}
{{- define "crescendo.scaling" -}}
{{- if .values.autoscaling.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "crescendo.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "crescendo.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "crescendo.name" . }}}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .values.autoscaling.targetCPUUtilization }}}}
{{- end }}
{{- if gt (int (ternary .values.autoscaling.minReplicas .values.replicas .values.autoscaling.enabled)) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "crescendo.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "crescendo.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {{ include "crescendo.selector" . | fromYaml | toJson }}}
{{- end }}
{{- end }}
