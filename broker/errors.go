package broker

import (
	"errors"
	"fmt"

	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Met when opening a node.
var (
	// ErrInUse is returned when another process has the data directory open.
	ErrInUse = wal.ErrInUse
	// ErrIdentity is returned when the data directory belongs to another
	// cluster or node, or has another number of partitions.
	ErrIdentity = wal.ErrIdentity
	// ErrFormat is returned when a newer version wrote the data directory.
	ErrFormat = wal.ErrFormat
	// ErrReadOnly is returned when the data directory can't be written to.
	ErrReadOnly = wal.ErrReadOnly
	// ErrDamaged is returned when stored bytes are not what was written.
	ErrDamaged = wal.ErrDamaged
	// ErrNATSNotReady is returned when the NATS server does not accept clients:
	// its port is taken, or the context ended first.
	ErrNATSNotReady = natsserver.ErrNotReady
	// ErrNameTaken is returned when another node of that name is running.
	ErrNameTaken = errors.New("broker: node name is taken")
	// ErrProtocol is returned when the other nodes are of a version that this
	// one can't work with.
	ErrProtocol = errors.New("broker: other nodes speak another protocol")
	// ErrRemoved is what [Node.Err] returns after the node was removed from its
	// cluster.
	ErrRemoved = errors.New("broker: node was removed from its cluster")
	// ErrOlderCopy is what [Node.Err] returns after the other nodes have found
	// that the data directory is an older copy of itself.
	ErrOlderCopy = errors.New("broker: data directory is an older copy of itself")
	// ErrLogin is returned by [Node.Login] if nobody can log in that way.
	ErrLogin = errors.New("broker: logins need a client port that asks for no certificate")
	// ErrOptions is returned for an option that is out of its range.
	ErrOptions = natsserver.ErrOptions
)

// wireErrors is the one table from errors to reasons. The text of those that
// it does not know is logged and not sent.
var wireErrors = []struct {
	err    error
	reason subjects.Reason
	text   string
}{
	{raftstore.ErrNotLeader, subjects.Unavailable, "this node does not lead the partition any more: try again"},
	{raftstore.ErrUnknown, subjects.Unknown, "leadership or storage was lost on the way: it may or may not have committed; send it again with the same message id"},
	{raftstore.ErrClosed, subjects.Unavailable, "the node is stopping: try again"},
	{wal.ErrClosed, subjects.Unavailable, "the node is stopping: try again"},
	{wal.ErrNoSpace, subjects.StorageFull, "no room on the node's disk"},
	{wal.ErrFailed, subjects.Unavailable, "the node's storage has failed"},
	{wal.ErrDamaged, subjects.Internal, "stored data is damaged: the node's log says where"},
}

// wireError returns err as clients see it.
func wireError(err error) *subjects.Error {
	var e *subjects.Error
	if errors.As(err, &e) {
		return e
	}
	for _, w := range wireErrors {
		if errors.Is(err, w.err) {
			return subjects.Errorf(w.reason, "%s", w.text)
		}
	}
	return subjects.Errorf(subjects.Internal, "internal error: the node's log says more")
}

// aheadError refuses a txid that lies beyond a partition's end. A slow node is
// never the reason: the client means another log, or this one has lost
// transactions.
func aheadError(what string, txid uint64, partition int, last uint64) *subjects.Error {
	return subjects.Errorf(subjects.Ahead,
		"%s %d is ahead of partition %d, whose last txid is %d: it comes from another log, or this log has lost transactions; stop, and check that cluster and partition are the right ones",
		what, txid, partition, last)
}

// count writes how many there are of something, such as "1 replica" and "2
// replicas".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
