// Package subjects is the Go side of subjects.md: the names, headers, limits,
// replies and error codes by which clients and nodes understand each other.
//
// Its nouns are [Names] (the subjects under a prefix), [Reply], [BatchReply]
// and [Error] (what a node answers), and the header block (what a message
// carries beside its payload). It knows the wire and nothing else: no
// connection, no storage. The tables of subjects.md are tested against it.
//
// All functions are pure and safe for concurrent use.
package subjects
