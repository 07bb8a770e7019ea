module github.com/cantuslog/cantus/client/oteltrace

go 1.26.0

require (
	github.com/cantuslog/cantus/client v0.1.0
	github.com/nats-io/nats.go v1.55.0
	go.opentelemetry.io/otel v1.47.0
	go.opentelemetry.io/otel/trace v1.47.0
)

require (
	github.com/cantuslog/cantus/subjects v0.1.0 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/klauspost/compress v1.20.4 // indirect
	github.com/nats-io/nkeys v0.4.17 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	golang.org/x/crypto v0.59.0 // indirect
	golang.org/x/sys v0.50.0 // indirect
)

replace (
	github.com/cantuslog/cantus/client => ..
	github.com/cantuslog/cantus/subjects => ../../subjects
)
