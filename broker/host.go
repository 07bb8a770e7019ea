package broker

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/traces"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// host is what a replica needs of its node. A replica knows nothing else of it,
// so tests can replace each part. It gives each of its own parts only what that
// part declares.
type host struct {
	name       string // of the node
	cluster    string // the id of its cluster
	names      subjects.Names
	partitions int // of the cluster
	log        *slog.Logger
	// leaderships gathers what is logged of partitions that this node begins to
	// lead, or no longer leads, at the same time.
	leaderships *loglimit.Burst
	now         func() time.Time // for the times of transactions
	queueBytes  int              // capacity of each queue
	state       stateOptions
	metrics     *metrics
	stats       *serviceStats
	tracer      *traces.Tracer // nil for none
	// trimming, if not nil, is called before each step of trimming a log. It is
	// for tests.
	trimming          func(step string)
	retentionInterval time.Duration // between two trims by a policy

	messaging
	sharedLimits
	clusterView
	services
}

// messaging is how a replica receives and sends messages. Transmitters and
// connections may block; outboxes never do.
type messaging struct {
	nats               natsInfo
	appends, reads     connection
	feeds              transmitter
	outbox, readOutbox outbox
	queueGroup         string // of the subscriptions: see docs/adr/0021
	feedKey            ed25519.PrivateKey
	pacer              *pacer
	encodeAdvisory     func(names subjects.Names, event string, fields map[string]any) []byte
}

// sharedLimits are limits that all partitions of the node share.
type sharedLimits struct {
	inflight  *inflightLimit
	scans     *semaphore.Weighted // reads that search a log
	archive   Archive             // of what was trimmed, nil for none
	archiving *semaphore.Weighted // reads that are answered from the archive
	startRead func(serve func()) error
	space     diskSpace
	indexes   indexOptions
}

// clusterView is what a replica needs to know of the cluster, and of its
// node's part in it.
type clusterView struct {
	clustered       bool // other nodes may hold replicas
	peers           *peers
	facts           func() (facts cluster.Facts, changed <-chan struct{})
	mayLead         <-chan struct{} // closed when the node may lead
	electionTimeout time.Duration
	announce        func() // has the announcement sent to the others soon
	groupOptions    func(id uint32, log *wal.Log, fsm raftstore.FSM, logger *slog.Logger) raftstore.Options
}

// natsInfo is what the data path needs to know of the NATS server: its limits,
// and which subjects have subscribers.
type natsInfo interface {
	MaxPayload() int                     // bytes of a message, headers included
	LimitsChanged() <-chan struct{}      // closed when MaxPayload changes
	MayHaveInterest(subject string) bool // whether subject may have a subscriber
	HasInterest(subject string) bool     // whether subject is known to have a subscriber
}

// transmitter sends whole protocol commands to the NATS server. It may block.
type transmitter interface {
	Send(commands []byte) error
}

// outbox queues whole protocol commands for the NATS server, and sends them in
// order. It never blocks.
type outbox interface {
	Enqueue(commands []byte)
}

// connection is a connection to the NATS server.
type connection interface {
	transmitter
	Subscribe(subject, queue string, handle func(*natslink.Message)) (id int, err error)
	Unsubscribe(ctx context.Context, ids ...int) error
	Confirm(ctx context.Context, ids ...int) error // waits until subscriptions are in force
}

// diskSpace reports whether nodes have room for transactions.
type diskSpace interface {
	isTight() bool  // this node's store accepts nothing more
	isLow() bool    // less than the reserve is free on this node's disk
	isFull() bool   // either
	reserve() int64 // bytes
	hasRoom(node string, now time.Time) (room, full bool)
	setFull(full bool)              // sets whether this node is full, and announces a change
	takesProposed(bytes int64) bool // whether there is room for entries proposed before
}
