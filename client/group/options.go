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

// ErrLost ends the handling of a partition whose lease ran out, or went to
// another member.
var ErrLost = errors.New("group: the partition's lease is lost")

// maxName leaves room for what is put behind a group's name.
const maxName = subjects.MaxToken - len("-member-1023")

// Options configures a member. The zero value has every default. All members
// of a group have to have the same, but for Follow and OnChange.
type Options struct {
	// Partitions are those that the group handles. Default: all that the
	// cluster has.
	Partitions []int
	// MaxMembers is how many members share the partitions at most, 1 to 1,024;
	// others stand by. Each member asks for so many cursors every third of a
	// lease. Default 16.
	MaxMembers int
	// Lease is how long a member may be silent. Default 6 s, at least 50 ms. A
	// member that is not alone says four times as often that it lives, and each time
	// is an entry of the log of the group's first partition.
	Lease time.Duration
	// CommitInterval is how often the position is set, and so how much may be handled
	// again after a crash. Each costs a commit of the log. Default 200 ms.
	CommitInterval time.Duration
	// Follow has filters, and what to do about errors. A partition that was
	// stopped by its handler's error stays with its member, and stopped.
	Follow client.FollowOptions
	// OnChange is told which partitions the member handles, when that changes. It
	// must not block.
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
