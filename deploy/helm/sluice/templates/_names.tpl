{{/* Labels of every object. Names are fixed: a node has one agent, and so a cluster one release. */}}
{{- define "sluice.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "sluice.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* ADDR:PORT; an IPv6 address in brackets. */}}
{{- define "sluice.admin" -}}
{{- $address := .Values.admin.address -}}
{{- if contains ":" $address }}{{ $address = printf "[%s]" $address }}{{ end -}}
{{ $address }}:{{ .Values.admin.port }}
{{- end }}

{{/* Where the kubelet finds the admin API: a wildcard address is on the loopback too. */}}
{{- define "sluice.probeHost" -}}
{{- $address := .Values.admin.address -}}
{{- if eq $address "0.0.0.0" }}127.0.0.1{{ else if eq $address "::" }}::1{{ else }}{{ $address }}{{ end -}}
{{- end }}

{{/* The configuration file: config, and the section hubble when that is enabled. */}}
{{- define "sluice.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if and .Values.hubble.enabled (not .Values.cleanup) }}
{{- $folder := "/etc/sluice-hubble" }}
{{- $tls := dict "cert_file" (printf "%s/tls.crt" $folder) "key_file" (printf "%s/tls.key" $folder) }}
{{- if .Values.hubble.mutualTls }}{{ $_ := set $tls "client_ca_file" (printf "%s/ca.crt" $folder) }}{{ end }}
{{- $hubble := dict "listen" (printf "0.0.0.0:%v" .Values.hubble.port) "tls" $tls }}
{{- $_ := set $config "hubble" (mustMergeOverwrite $hubble (deepCopy ($config.hubble | default dict))) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- define "sluice.isLoopback" -}}
{{- if or (hasPrefix "127." .Values.admin.address) (eq "::1" .Values.admin.address) }}true{{ end -}}
{{- end }}

{{/* What the agent and its cleanup may do: change the node's network, and nothing else of what root may. */}}
{{- define "sluice.containerSecurity" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: [NET_ADMIN, NET_RAW]
{{- end }}

{{/* Where pods of both DaemonSets run. */}}
{{- define "sluice.placement" -}}
hostNetwork: true
dnsPolicy: {{ .Values.dnsPolicy }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
- name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  seccompProfile:
    type: RuntimeDefault
{{- end }}
