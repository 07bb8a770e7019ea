// Package subjects is the Go side of subjects.md, the wire protocol between
// clients and nodes: the names, headers, limits, replies and error codes.
//
// Its main types are [Names] (the subjects under a prefix), and [Reply],
// [BatchReply] and [Error] (a node's answers). Other functions encode and
// decode header blocks. The package has no connection and no storage. The
// tables of subjects.md are tested against it.
//
// All functions are pure and safe for concurrent use.
package subjects
