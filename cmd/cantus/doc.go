// Command cantus is the node and the command-line client of Cantus, a
// replicated transaction log behind NATS.
//
// "cantus serve" runs a node; append, read, get and status speak to one over
// NATS like any other client; verify checks a data directory that no node
// has open. "cantus COMMAND --help" is the reference.
//
// The package holds flags, files, signals and words for people, and nothing
// of how a node works. Its nouns are the program, which main starts and
// tests can start; a command, one struct of flags with a Run method each;
// the link, a client command's NATS connection; and the failure, an error
// with an exit status.
//
// # Exit status
//
//	0  done
//	1  it failed: damage found, storage failed, no such transaction
//	2  the command line, the configuration or the request is wrong
//	3  conflict: others committed first; apply what they did, compute again
//	4  nothing was done: no server, no leader or a full queue; try again later
//	5  unknown: the append may or may not have committed; repeat it with the
//	   same message id
package main
