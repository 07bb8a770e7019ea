// Package natsserver is the NATS server that is embedded in a node: its
// configuration, who is let in and with which permissions, its limits, and its
// reload.
//
// Its nouns are [Server] and [Options]. It knows the subjects of the log, and
// nothing of nodes, partitions or replication.
package natsserver
