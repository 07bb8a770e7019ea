package broker

import "github.com/cantuslog/cantus/subjects"

// feedRoom is what a feed message may have beside a transaction's own bytes.
const feedRoom = 1024

// maxTransaction returns the most bytes that a transaction may have: the
// protocol's limit, or less if the NATS server's limit for a message is
// smaller.
func maxTransaction(maxPayload int) int { return min(subjects.MaxTransaction, maxPayload-feedRoom) }

// maxBatch returns how many transactions a batch message may carry without its
// answer becoming too large.
func maxBatch(maxPayload int) int { return min(subjects.MaxBatch, maxPayload/outcomeBytes-1) }
