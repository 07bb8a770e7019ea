// Package natsserver is the NATS server that is embedded in a node: its
// configuration, authentication, permissions, limits and reload.
//
// The main types are [Server] and [Options]. The package depends on the log's
// subjects, but not on nodes, partitions or replication.
package natsserver
