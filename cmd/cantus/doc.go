// Command cantus is the node and the command-line client of Cantus, a
// replicated transaction log behind NATS.
//
// "cantus serve" runs a node, and "cantus config check" checks its
// configuration; append, read, get, status, export and import speak to one over
// NATS like any other client, and so does backup, which copies the logs; verify
// checks a data directory that no node has open, salvage reads what is left in
// a damaged one, recover makes the only member of a new cluster of one, and
// check checks a recorded history. "cantus COMMAND --help" is the reference.
//
// The package handles flags, files, signals and messages for people; how a node
// works is in package broker. Its main types are program, which main and the
// tests start; the commands, each a struct of flags with a Run method;
// natsConn, a client command's NATS connection; and failure, an error with an
// exit status.
//
// # Exit status
//
//	0  done
//	1  it failed: damage found, storage failed, no such transaction, a txid past
//	   the end of the log
//	2  the command line, the configuration or the request is wrong
//	3  conflict: others committed first; apply what they did, compute again
//	4  nothing was done: no server, no leader or a full queue; try again later
//	5  unknown: the append may or may not have committed; repeat it with the
//	   same message id
package main
