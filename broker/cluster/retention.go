package cluster

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Retention says which transactions of a partition may be trimmed. A
// transaction may go once every cursor has passed it and, if there is an age, a
// size or a count, once one of them says so.
type Retention struct {
	// Age: what is older may go.
	Age time.Duration `json:"age,omitempty"`
	// Bytes: what at least that many bytes of the log follow may go.
	Bytes uint64 `json:"bytes,omitempty"`
	// Count: what at least that many transactions follow may go.
	Count uint64 `json:"count,omitempty"`
	// Cursors hold what they have not passed. One that does not exist holds
	// everything.
	Cursors []string `json:"cursors,omitempty"`
	// Archive is the one of Cursors that a backup moves, "" for none. It is
	// said to be behind once a transaction has waited for it for ArchiveLag.
	Archive    string        `json:"archive,omitempty"`
	ArchiveLag time.Duration `json:"archive_lag,omitempty"`
}

// Bounded reports whether the policy has an age, a size or a count.
func (r Retention) Bounded() bool { return r.Age > 0 || r.Bytes > 0 || r.Count > 0 }

func (r Retention) check() error {
	switch {
	case r.Age < 0 || r.ArchiveLag < 0:
		return fmt.Errorf("%w: a time is negative", ErrCommand)
	case !r.Bounded() && len(r.Cursors) == 0:
		return fmt.Errorf("%w: the policy says nothing: give it an age, a size, a count or cursors", ErrCommand)
	case r.Archive != "" && !slices.Contains(r.Cursors, r.Archive):
		return fmt.Errorf("%w: the archive's cursor %q is not among the cursors", ErrCommand, r.Archive)
	case r.ArchiveLag > 0 && r.Archive == "":
		return fmt.Errorf("%w: there is no archive that could be behind", ErrCommand)
	}
	return nil
}

// AllPartitions stands for the policy of all partitions that have none of their
// own.
const AllPartitions = -1

const allKey = "*"

func retentionKey(partition int) string {
	if partition == AllPartitions {
		return allKey
	}
	return strconv.Itoa(partition)
}

// RetentionOf returns a partition's policy, and whether it is the partition's
// own and not that of all.
func (f Facts) RetentionOf(partition int) (r Retention, own, is bool) {
	if r, own = f.Retention[retentionKey(partition)]; own {
		return r, true, true
	}
	r, is = f.Retention[allKey]
	return r, false, is
}

// SetRetention returns the command that sets the policy of a partition, or of
// AllPartitions that have none of their own. Without a policy it removes the
// one that was set.
func (f Facts) SetRetention(partition int, policy *Retention) (Command, error) {
	c := Command{Kind: SetRetention, Version: f.Version, Partition: retentionKey(partition), Retention: policy}
	if partition != AllPartitions {
		if _, err := f.placed(partition); err != nil {
			return Command{}, err
		}
	}
	if policy != nil {
		return c, policy.check()
	}
	if _, has := f.Retention[c.Partition]; has {
		return c, nil
	}
	_, general := f.Retention[allKey]
	switch {
	case partition == AllPartitions:
		return Command{}, fmt.Errorf("%w: there is no policy of all partitions to remove", ErrCommand)
	case general:
		return Command{}, fmt.Errorf("%w: partition %d has no policy of its own to remove, only that of all partitions", ErrCommand, partition)
	}
	return Command{}, fmt.Errorf("%w: partition %d has no policy to remove", ErrCommand, partition)
}

// setRetention applies the command of SetRetention.
func (f *Facts) setRetention(c Command) error {
	if c.Retention == nil {
		delete(f.Retention, c.Partition)
		if len(f.Retention) == 0 {
			f.Retention = nil
		}
		return nil
	}
	if err := c.Retention.check(); err != nil {
		return err
	}
	if f.Retention == nil {
		f.Retention = map[string]Retention{}
	}
	f.Retention[c.Partition] = *c.Retention
	return nil
}
