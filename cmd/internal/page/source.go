package page

import (
	"context"
	"errors"
)

// Source is where a page's contents come from.
type Source interface {
	// Status returns what everybody who reaches the port may see, in a form
	// that encodes to JSON. An error is shown as its text.
	Status(ctx context.Context) (any, error)
	// Login opens what a viewer with some credentials may see; those without
	// any field are of an anonymous one. The error is [ErrCredentials] if they
	// are not enough.
	Login(ctx context.Context, c Credentials) (Viewer, error)
}

// Viewer reads as one user. Its methods return values that encode to JSON.
type Viewer interface {
	// User names the user, "" for an anonymous one.
	User() string
	// Tail emits events about transactions, from the newest ones on, until ctx
	// ends. A slow emit slows it down; what it leaves out then, it says.
	Tail(ctx context.Context, f Filter, emit func(event string, data any))
	// Transaction returns a transaction.
	Transaction(ctx context.Context, partition int, txid uint64) (any, error)
	// Around returns which transactions recorded a lock of a transaction before
	// it and after it.
	Around(ctx context.Context, q AroundQuery) (any, error)
	// Lock returns the newest transactions that recorded a lock, those below
	// a txid if it is not 0.
	Lock(ctx context.Context, partition int, lock string, below uint64) (any, error)
	// Done is closed when the login has ended by itself.
	Done() <-chan struct{}
	Close()
}

// Filter says what of the log a tail shows.
type Filter struct {
	Partitions []int // nil for all
	Kind, Lock string
	// After has the last transaction of each partition that was seen already.
	After map[int]uint64
}

// AroundQuery asks for the neighbors of a transaction along one of its locks.
type AroundQuery struct {
	Partition int
	Txid      uint64
	Lock      string
	// Mark is the writer's high-water mark if the lock was checked against it.
	// Nothing between the two has recorded an overlapping lock.
	Mark    uint64
	Checked bool
}

// Credentials are what somebody logs in with: a name and a password, or a
// token.
type Credentials struct {
	User     string `json:"user"`
	Password string `json:"password"`
	Token    string `json:"token"`
	// Inbox is what the subjects of answers begin with. Default: what the
	// source tries.
	Inbox string `json:"inbox"`
}

func (c Credentials) anonymous() bool { return c.User == "" && c.Password == "" && c.Token == "" }

// ErrCredentials is returned for credentials that are wrong or missing.
var ErrCredentials = errors.New("the NATS server does not accept these credentials")
