package group

import (
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// ErrOptions is returned for an option that is out of its range.
var ErrOptions = errors.New("group: option out of range")

// ErrLost ends the handling of a partition whose lease expired or went to
// another member.
var ErrLost = errors.New("group: the partition's lease is lost")

// maxName leaves space for the suffixes of a group's name.
const maxName = subjects.MaxToken - len("-member-1023")

// Options configures a member. The zero value selects the defaults. All members
// of a group must have the same options, except Follow and OnChange.
type Options struct {
	// Partitions are those that the group handles. Default: all partitions of
	// the cluster.
	Partitions []int
	// MaxMembers limits the members that have partitions, 1 to 1,024; others
	// stand by. Each member reads this many cursors every third of a lease.
	// Default 16.
	MaxMembers int
	// Lease is how long a member may be silent, at least 50 ms. A member that
	// is not alone renews its lease four times as often; each renewal is an
	// entry in the log of the group's first partition. Default 6 s.
	Lease time.Duration
	// CommitInterval is how often the position is set. Up to that much work is
	// repeated after a crash. Each set is an entry in the log. Default 200 ms.
	CommitInterval time.Duration
	// Follow has filters and decides about errors. A partition that an error of
	// its handler stopped stays with its member, stopped.
	Follow client.FollowOptions
	// OnChange is called when the member's partitions change. It must not
	// block.
	OnChange func(partitions []int)
}

func (o Options) withDefaults(name string) (Options, error) {
	if err := subjects.CheckCursor(name); err != nil {
		return o, fmt.Errorf("%w: name: %w", ErrOptions, err)
	}
	if len(name) > maxName {
		return o, fmt.Errorf("%w: the name has %d bytes: at most %d", ErrOptions, len(name), maxName)
	}
	if o.MaxMembers == 0 {
		o.MaxMembers = 16
	}
	if o.Lease == 0 {
		o.Lease = 6 * time.Second
	}
	if o.CommitInterval == 0 {
		o.CommitInterval = 200 * time.Millisecond
	}
	switch {
	case o.MaxMembers < 1 || o.MaxMembers > 1024:
		return o, fmt.Errorf("%w: MaxMembers is %d: 1 to 1,024", ErrOptions, o.MaxMembers)
	case o.Lease < 50*time.Millisecond:
		return o, fmt.Errorf("%w: Lease is %v: at least 50 ms", ErrOptions, o.Lease)
	case o.CommitInterval < 0:
		return o, fmt.Errorf("%w: CommitInterval is %v", ErrOptions, o.CommitInterval)
	}
	return o, nil
}
