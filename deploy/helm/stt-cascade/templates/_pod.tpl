{{/* The pod of a tier, as a pod template. */}}
{{- define "stt.pod" -}}
metadata:
  labels: {{- include "stt.podLabels" . | nindent 4 }}
  annotations:
    # Settings are read at the start, so a change rolls the pods. Keys are re-read, so theirs does not.
    checksum/settings: {{ include "stt.settings" . | sha256sum }}
    {{- if include "stt.sidecar" . }}
    checksum/envoy: {{ include "stt.sidecarConfig" . | sha256sum }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  # preStop, the drain, and 10 s for the end.
  terminationGracePeriodSeconds: {{ addf .root.Values.endpointRemovalSeconds (include "stt.drain" .) 10 | ceil | int }}
  securityContext: {{- include "stt.podSecurity" . | nindent 4 }}
  {{- with include "stt.pullSecrets" . }}{{ . | nindent 2 }}{{ end }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- $nodes := deepCopy .values.nodeSelector }}
  {{- $tolerations := .values.tolerations }}
  {{- if .values.gpu }}
  {{- $_ := set $nodes "nvidia.com/gpu.present" "true" }}
  {{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $nodes }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "stt.spread" . }}{{ . | nindent 2 }}{{ end }}
  {{- with include "stt.initContainers" . | trim }}
  initContainers: {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ include "stt.name" . }}
      image: {{ include "stt.image" (dict "root" .root "image" .values.image) }}
      imagePullPolicy: {{ .values.image.pullPolicy }}
      env:
        - {name: CONFIG_PATH, value: /config/stt_{{ .tier }}.env}
      ports:
        - {name: http, containerPort: {{ include "stt.port" . }}}
      # The port answers before the model is loaded: loading takes as long as the disk needs.
      startupProbe:
        httpGet: {path: /v1/health, port: http}
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 60
      # Loaded and warm, and neither draining nor stuck.
      readinessProbe:
        httpGet: {path: /v1/ready, port: http}
        periodSeconds: 3
        timeoutSeconds: 5
        failureThreshold: 3
      # Overload is no reason to kill: a full queue answers 200 here. Two minutes of silence are one. A
      # stuck inference ends the process before that, see WEDGED_EXIT_S.
      livenessProbe:
        httpGet: {path: /v1/health, port: http}
        periodSeconds: 15
        timeoutSeconds: 10
        failureThreshold: 8
      lifecycle:
        preStop:
          # SIGTERM closes the door, so it waits until nobody is sent here any more.
          sleep: {seconds: {{ .root.Values.endpointRemovalSeconds | int }}}
      resources: {{- include "stt.resources" . | nindent 8 }}
      securityContext: {{- include "stt.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - {name: settings, mountPath: /config, readOnly: true}
        - {name: keys, mountPath: /secrets, readOnly: true}
        - {name: models, mountPath: /models, readOnly: true}
        - {name: cache, mountPath: /cache}
        - {name: tmp, mountPath: /tmp}
        {{- if and (eq .tier "primary") .root.Values.mtls.enabled }}
        - {name: tls, mountPath: /tls, readOnly: true}
        {{- end }}
  volumes:
    - name: settings
      configMap: {name: {{ include "stt.name" . }}-settings}
    - name: keys
      secret: {secretName: {{ .values.keys.secret }}, defaultMode: 0440}
    - name: models {{- include "stt.modelVolume" . | nindent 6 }}
    - name: cache
      emptyDir: {sizeLimit: 256Mi}
    - name: tmp
      emptyDir: {sizeLimit: 256Mi}
    {{- with include "stt.tlsVolumes" . | trim }}{{ . | nindent 4 }}{{ end }}
{{- end }}

{{- define "stt.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .root.Values.user | int }}
runAsGroup: {{ .root.Values.user | int }}
fsGroup: {{ .root.Values.user | int }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "stt.pullSecrets" -}}
{{- with .root.Values.imagePullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "stt.spread" -}}
{{- with .root.Values.topologyKeys -}}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {app: {{ include "stt.name" $ }}}}
    # An update's new pods are spread among themselves.
    matchLabelKeys: [{{ include "stt.hashLabel" $ }}]
  {{- end }}
{{- end }}
{{- end }}

{{- define "stt.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What ReplicaSets of one version are told apart by. */}}
{{- define "stt.hashLabel" -}}
{{ and (eq .tier "primary") .root.Values.rollouts.enabled | ternary "rollouts-pod-template-hash" "pod-template-hash" }}
{{- end }}

{{- define "stt.resources" -}}
{{- $resources := deepCopy .values.resources -}}
{{- if .values.gpu -}}
{{- range $part := list "requests" "limits" -}}
{{- $_ := set $resources $part (set (index $resources $part | default dict) "nvidia.com/gpu" 1) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "stt.initContainers" -}}
{{- $model := .values.model -}}
{{- $pull := eq $model.source "pull" -}}
{{- if or $pull $model.verify }}
# The model is brought, or compared with its pinned digests, before the tier starts.
- name: model
  image: {{ include "stt.image" (dict "root" .root "image" .values.image) }}
  imagePullPolicy: {{ .values.image.pullPolicy }}
  command: [stt, models, {{ ternary "pull" "verify" $pull }}, {{ $model.name }}, --root, /models]
  env:
    - {name: HOME, value: /tmp}
  resources:
    requests: {cpu: 500m, memory: 512Mi}
    limits: {memory: 1Gi}
  securityContext: {{- include "stt.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models, readOnly: {{ not $pull }}}
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- if include "stt.sidecar" . }}
# A sidecar: there before the fallback, and until it has drained.
- name: envoy
  restartPolicy: Always
  {{- include "stt.envoyContainer" (merge (dict "file" "fallback.yaml") .) | nindent 2 }}
  ports:
    - {name: mtls, containerPort: 8443}
  startupProbe:
    tcpSocket: {port: mtls}
    periodSeconds: 2
    failureThreshold: 60
  resources: {{- toYaml .root.Values.mtls.resources | nindent 4 }}
  volumeMounts: {{- include "stt.envoyMounts" (dict "volume" "envoy" "files" (list "fallback.yaml" "fallback-certificate.yaml" "primaries.yaml")) | trim | nindent 4 }}
{{- end }}
{{- end }}

{{/* Whether the pod has an Envoy that lets only primaries in; as text, empty for no. */}}
{{- define "stt.sidecar" -}}
{{- if and (eq .tier "fallback") .root.Values.mtls.enabled }}yes{{ end -}}
{{- end }}

{{/* The certificates of mTLS, as each side names them. */}}
{{- define "stt.tlsVolumes" -}}
{{- if .root.Values.mtls.enabled }}
- name: tls
  secret:
    secretName: {{ ternary .root.Values.mtls.primarySecret .root.Values.mtls.fallbackSecret (eq .tier "primary") }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
      - {key: tls.crt, path: {{ .tier }}.crt}
      - {key: tls.key, path: {{ .tier }}.key}
{{- end }}
{{- if include "stt.sidecar" . }}
- name: envoy
  configMap: {name: {{ include "stt.name" . }}-envoy}
{{- end }}
{{- end }}

{{- define "stt.modelVolume" -}}
{{- $model := .values.model -}}
{{- if eq $model.source "hostPath" -}}
hostPath: {path: {{ $model.hostPath }}, type: Directory}
{{- else if eq $model.source "image" -}}
image: {reference: {{ $model.image | quote }}, pullPolicy: IfNotPresent}
{{- else if $model.claim -}}
persistentVolumeClaim: {claimName: {{ $model.claim }}}
{{- else -}}
emptyDir: {sizeLimit: {{ $model.size }}}
{{- end -}}
{{- end }}
