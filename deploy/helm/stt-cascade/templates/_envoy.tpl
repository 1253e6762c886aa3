{{/* A file of deploy/envoy, with the name of one host for another. */}}
{{- define "stt.envoyFile" -}}
{{- $text := .root.Files.Get (printf "files/envoy/%s" .file) -}}
{{- if not (contains .was $text) }}{{ fail (printf "files/envoy/%s: no %s in it" .file .was) }}{{ end -}}
{{- $text | replace .was .is -}}
{{- end }}

{{/* What both Envoys have: the one in front of the primaries, and the one beside a fallback. */}}
{{- define "stt.envoyContainer" -}}
image: {{ include "stt.image" (dict "root" .root "image" .root.Values.envoy.image) }}
imagePullPolicy: {{ .root.Values.envoy.image.pullPolicy }}
command: [envoy, --config-path, /etc/envoy/{{ .file }}, --disable-hot-restart, --drain-time-s, "60", --log-level, warn]
securityContext: {{- include "stt.containerSecurity" . | nindent 2 }}
{{- end }}

{{/* The files of the fallback's Envoy, as a ConfigMap's data. */}}
{{- define "stt.sidecarConfig" -}}
fallback.yaml: |
  {{- .root.Files.Get "files/envoy/fallback.yaml" | nindent 2 }}
fallback-certificate.yaml: |
  {{- .root.Files.Get "files/envoy/fallback-certificate.yaml" | nindent 2 }}
primaries.yaml: |
  {{- include "stt.envoyFile" (dict "root" .root "file" "primaries.yaml" "was" "exact: stt-primary}" "is" (printf "exact: %s-primary}" .root.Values.prefix)) | nindent 2 }}
{{- end }}

{{/* Files of their own, since the folder of the certificates lies among them; they change with the pod. */}}
{{- define "stt.envoyMounts" -}}
{{- $volume := .volume -}}
{{- range .files }}
- {name: {{ $volume }}, mountPath: /etc/envoy/{{ . }}, subPath: {{ . }}, readOnly: true}
{{- end }}
- {name: tls, mountPath: /etc/envoy/tls, readOnly: true}
{{- end }}
