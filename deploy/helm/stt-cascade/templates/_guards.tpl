{{/* What the schema can't say, since it takes two values: each is refused with a sentence. */}}
{{- define "stt.guards" -}}
{{- $values := .Values -}}
{{- $primary := dict "root" . "tier" "primary" "values" $values.primary -}}
{{- if not (or $values.fallback.enabled $values.primary.fallbackUrl) -}}
{{- fail "fallback.enabled is false: say in primary.fallbackUrl where the fallback is" -}}
{{- end -}}
{{- if $values.fallback.enabled -}}
{{- $burst := int (index $values.fallback.settings "RATE_LIMIT_BURST" | default 120) -}}
{{- $scale := include "stt.scale" $primary | fromJson -}}
{{- $slots := mul (int (include "stt.slots" $primary)) (int $scale.max) -}}
{{- if lt $burst (int (mul 2 $slots)) -}}
{{- fail (printf "fallback.settings.RATE_LIMIT_BURST is %d: the primaries have %d slots, and it must be at least twice that" $burst $slots) -}}
{{- end -}}
{{- $theirs := $values.fallback.keys -}}
{{- if and $values.primary.keys.create $theirs.create (not (has $values.primary.keys.fallback $theirs.api)) -}}
{{- fail "primary.keys.fallback is not among fallback.keys.api: the fallback would refuse the primary" -}}
{{- end -}}
{{- end -}}
{{- range $tier := list "primary" "fallback" -}}
{{- $keda := index $values.keda $tier -}}
{{- if lt (int $keda.max) (int $keda.min) -}}
{{- fail (printf "keda.%s: max is less than min" $tier) -}}
{{- end -}}
{{- if or (lt (int $keda.replicasWithoutMetrics) (int $keda.min)) (gt (int $keda.replicasWithoutMetrics) (int $keda.max)) -}}
{{- fail (printf "keda.%s: replicasWithoutMetrics is not between min and max" $tier) -}}
{{- end -}}
{{- $each := index $values $tier -}}
{{- if and $each.settings.OTLP_ENDPOINT $values.networkPolicy.enabled (not $values.networkPolicy.egress) -}}
{{- fail (printf "%s.settings.OTLP_ENDPOINT: networkPolicy.egress must let the tier go there" $tier) -}}
{{- end -}}
{{- /* As the files of Envoy have it. */}}
{{- if and (or $values.envoy.enabled $values.mtls.enabled) (ge ($each.settings.REQUEST_TIMEOUT_S | default 60 | float64) 65.0) -}}
{{- fail (printf "%s.settings.REQUEST_TIMEOUT_S: Envoy gives up after 65 s, before the service would" $tier) -}}
{{- end -}}
{{- if and (eq (int $each.surge) 0) (eq (int $each.unavailable) 0) -}}
{{- fail (printf "%s: with surge and unavailable 0 an update could not begin" $tier) -}}
{{- end -}}
{{- end -}}
{{- if and $values.primary.fallbackUrl $values.networkPolicy.enabled (not $values.networkPolicy.egress) -}}
{{- fail "primary.fallbackUrl is outside of the chart: networkPolicy.egress must let the primaries go there" -}}
{{- end -}}
{{- if and $values.monitors.enabled (or $values.primary.keys.guardMetrics $values.fallback.keys.guardMetrics) -}}
{{- if not (and $values.monitors.credentials.name $values.monitors.credentials.key) -}}
{{- fail "the metrics are guarded: monitors.credentials must say which Secret has a key of them" -}}
{{- end -}}
{{- end -}}
{{- if and $values.mtls.enabled (not $values.networkPolicy.enabled) -}}
{{- fail "mtls: without networkPolicy everybody reaches the fallback beside it, at port 8082" -}}
{{- end -}}
{{- if $values.rollouts.enabled -}}
{{- if lt (int (include "stt.scale" $primary | fromJson).min) 2 -}}
{{- fail "rollouts: a canary among the primaries needs at least two of them" -}}
{{- end -}}
{{- end -}}
{{- end }}
