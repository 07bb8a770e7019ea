package broker

import (
	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// The versions of the records in batches: the first that has atomic batches,
// the first that has sessions, the first in which transactions move cursors,
// and the newest that this node reads.
const (
	atomicRecords  = 1
	sessionRecords = 2
	moveRecords    = 3
	recordsVersion = moveRecords
)

// recordsGate decides whether a log can take records of a version.
type recordsGate struct {
	facts func() (cluster.Facts, <-chan struct{})
	peers *peers
}

// newRecords is what each version of records has that those before have not.
var newRecords = [...]string{atomicRecords: "atomic batches", sessionRecords: "sessions", moveRecords: "cursors that move with transactions"}

// refusal returns an error if a log can take no records of a version, because a
// node of the cluster would not understand them.
func (g recordsGate) refusal(version int) *subjects.Error {
	facts, _ := g.facts()
	if name := g.peers.notReading(version, facts.Nodes); name != "" {
		return subjects.Errorf(subjects.Unavailable, "node %s runs a version without %s: upgrade it first, nothing was done", name, newRecords[version])
	}
	return nil
}

// recordsOf returns the version of the records in batches, which are
// well-formed; 0 if every version reads them.
func recordsOf(batches [][]byte) (version int) {
	var t wal.Transaction
	for _, data := range batches {
		b, err := wal.ParseBatch(data)
		if err != nil {
			return version
		}
		for records := b.Read(); records.Next(&t); {
			switch {
			case len(t.Cursor) > 0:
				return recordsVersion
			case t.SessionSeq > 0:
				version = sessionRecords
			case t.Atomic.Size > 0:
				version = max(version, atomicRecords)
			}
		}
	}
	return version
}
