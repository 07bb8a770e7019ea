{{- define "cantus.selector" -}}
app.kubernetes.io/name: cantus
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cantus.secret" -}}
{{ .Values.secretName | default (printf "%s-secret" .Release.Name) }}
{{- end }}

{{- /* The route ports of the nodes 0 to count-1, or their names. */}}
{{- define "cantus.routes" -}}
{{- $all := list }}
{{- range $i := until (int .Values.replicas) }}
{{- $all = append $all (printf "%s-%d.%s-nodes:6222" $.Release.Name $i $.Release.Name) }}
{{- end }}
{{- join "," $all }}
{{- end }}

{{- define "cantus.founders" -}}
{{- $all := list }}
{{- range $i := until (int .Values.founders) }}
{{- $all = append $all (printf "%s-%d" $.Release.Name $i) }}
{{- end }}
{{- join "," $all }}
{{- end }}
