// Package judge decides whether a recorded history is one that the protocol
// allows. It knows the contract alone: subjects.md, and the format of a history
// that docs/checking.md describes. Nothing of a node is behind it.
//
// A [History] has the operations of clients, each with its start, end and
// outcome, and a [Drain] of each replica's log at the end. [Decode] reads one,
// a [Writer] writes one, and [Check] returns a [Report] with what is wrong.
// Each [Finding] has a [Class], which says what kind of error it is.
//
// A finding is a proof. The judge reports only what no order of events within
// the operations' intervals can explain, so a history in which it finds nothing
// may still hide an error. An operation without an answer may have been carried
// out at any time after its start, once.
//
// All times are nanoseconds. Those of operations come from one clock, which
// never goes back. Those of transactions come from the log, and are compared
// with each other only.
//
// The functions may be called concurrently; a Writer too.
package judge
