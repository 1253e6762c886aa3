{{/*
What the templates share. Most take a tier: (dict "root" $ "tier" "primary" "values" .Values.primary).
*/}}

{{/* Every tier that is deployed, as JSON: {"tiers": ["primary", "fallback"]}. */}}
{{- define "stt.tiers" -}}
{{- $tiers := list "primary" -}}
{{- if .Values.fallback.enabled }}{{ $tiers = append $tiers "fallback" }}{{ end -}}
{{- dict "tiers" $tiers | toJson -}}
{{- end }}

{{- define "stt.name" -}}
{{ .root.Values.prefix }}-{{ .tier }}
{{- end }}

{{- define "stt.port" -}}
{{ ternary 8081 8082 (eq .tier "primary") }}
{{- end }}

{{- define "stt.selector" -}}
app: {{ include "stt.name" . }}
{{- end }}

{{/* `app.kubernetes.io/name` becomes the metrics' label `job`. */}}
{{- define "stt.podLabels" -}}
{{ include "stt.selector" . }}
app.kubernetes.io/name: {{ .job | default (printf "stt-%s" .tier) }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: stt-cascade
{{- end }}

{{- define "stt.labels" -}}
{{ include "stt.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "stt.metadata" -}}
name: {{ .name | default (include "stt.name" .) }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "stt.labels" . | nindent 2 }}
{{- end }}

{{/* Takes (dict "root" $ "image" .Values.primary.image). */}}
{{- define "stt.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Fewest and most pods that a tier may have, as JSON. */}}
{{- define "stt.scale" -}}
{{- if .root.Values.keda.enabled -}}
{{- $keda := index .root.Values.keda .tier -}}
{{- dict "min" (int $keda.min) "max" (int $keda.max) | toJson -}}
{{- else -}}
{{- dict "min" (int .values.replicas) "max" (int .values.replicas) | toJson -}}
{{- end -}}
{{- end }}

{{- define "stt.slots" -}}
{{ .values.settings.MAX_CONCURRENCY | default 2 }}
{{- end }}

{{- define "stt.drain" -}}
{{ .values.settings.DRAIN_TIMEOUT_S | default 30 }}
{{- end }}

{{/* The tier's .env file: the values' lines, and those that follow from where the chart mounts what. */}}
{{- define "stt.settings" -}}
{{- $settings := deepCopy .values.settings -}}
{{- $path := printf "/models/whisper-%s-ct2" .values.model.name -}}
{{- $_ := set $settings (ternary "CT2_SMALL_PATH" "CT2_MEDIUM_PATH" (eq .tier "primary")) $path -}}
{{- $_ := set $settings "DEVICE" (ternary "cuda" "cpu" .values.gpu) -}}
{{- $_ := set $settings "CACHE_DIR" "/cache" -}}
{{- $_ := set $settings "API_KEYS_FILE" "/secrets/api.keys" -}}
{{- if .values.keys.guardMetrics }}{{ $_ := set $settings "METRICS_KEYS_FILE" "/secrets/metrics.keys" }}{{ end -}}
{{- if eq .tier "primary" -}}
{{- $fallback := dict "root" .root "tier" "fallback" -}}
{{- $here := printf "http://%s:8082" (include "stt.name" $fallback) -}}
{{- if .root.Values.mtls.enabled -}}
{{- $here = printf "https://%s:8443" (include "stt.name" $fallback) -}}
{{- $_ := set $settings "FALLBACK_CA_FILE" "/tls/ca.crt" -}}
{{- $_ := set $settings "FALLBACK_CERT_FILE" "/tls/primary.crt" -}}
{{- $_ := set $settings "FALLBACK_KEY_FILE" "/tls/primary.key" -}}
{{- end -}}
{{- $_ := set $settings "FALLBACK_URL" (.values.fallbackUrl | default $here) -}}
{{- $_ := set $settings "FALLBACK_API_KEY_FILE" "/secrets/fallback.key" -}}
{{- end -}}
{{- range $key, $value := $settings }}
{{- /* As JSON, since 1000000 would print as 1e+06. */}}
{{ $key }}={{ kindIs "string" $value | ternary $value ($value | toJson) }}
{{- end }}
{{- end }}

{{/* Matches the tier's series of this release in PromQL. */}}
{{- define "stt.series" -}}
job="stt-{{ .tier }}", namespace="{{ .root.Release.Namespace }}"
{{- end }}
