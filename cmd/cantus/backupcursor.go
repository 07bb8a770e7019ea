package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
)

// backupCursor is the cursor that says, in each partition, how far a backup
// reaches: the last txid that a manifest of it has. Retention policies can hold
// what it has not passed.
//
// It goes forward only, and only from the end of a manifest of this backup. At
// another place it was put by a backup elsewhere, or this one is an older copy
// of itself. Then it stays, since what is in one place only must not be trimmed
// because of the other.
type backupCursor struct {
	name       string
	source     *backupSource
	repository *backup.Repository
	ours       map[int]uint64 // positions at which this backup has put it, or found it to be its own
}

func newBackupCursor(name string, source *backupSource, repository *backup.Repository) *backupCursor {
	return &backupCursor{name: name, source: source, repository: repository, ours: map[int]uint64{}}
}

// begin begins a run: it looks where the cursor is, since the run may write so
// many manifests that the one which has its position is deleted.
func (c *backupCursor) begin(ctx context.Context, partitions []int) error {
	if len(partitions) == 0 {
		cluster, err := c.source.Cluster(ctx)
		if err != nil {
			return err
		}
		for p := range cluster.Partitions {
			partitions = append(partitions, p)
		}
	}
	for _, p := range partitions {
		at, err := c.get(ctx, p)
		if err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
		if _, err := c.isOurs(ctx, p, at); err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
	}
	return nil
}

// move moves the cursor of partitions, none for all, to the end of the manifest
// that a run has left.
func (c *backupCursor) move(ctx context.Context, partitions []int, m backup.Manifest) error {
	var failed []error
	for _, p := range m.Partitions {
		if len(partitions) > 0 && !slices.Contains(partitions, p.Partition) || p.Last.Txid == 0 || m.Generation == 0 {
			continue
		}
		if err := c.moveOne(ctx, p.Partition, p.Last.Txid); err != nil {
			failed = append(failed, fmt.Errorf("partition %d: the backup is stored, but the cursor %s was not moved: %w", p.Partition, c.name, err))
		}
	}
	return errors.Join(failed...)
}

// cursorTries is how often the cursor is read again because another process has
// moved it.
const cursorTries = 5

func (c *backupCursor) moveOne(ctx context.Context, partition int, to uint64) (err error) {
	for range cursorTries {
		at, err := c.get(ctx, partition)
		if err != nil || at == to {
			return err
		}
		ours, err := c.isOurs(ctx, partition, at)
		switch {
		case err != nil:
			return err
		case !ours:
			return failf(exitFailed, "it is at %d, where this backup has not put it: another backup moves it, or this is an older copy of the backup; "+
				"give each backup a cursor of its own, or set it to 0 if no other one uses it, and run this again", at)
		case at > to:
			return nil // another process has moved it to a newer manifest
		}
		err = c.source.ask(ctx, partition, c.subject(partition), subjects.CursorRequest{Txid: &to, Expected: &at}, new(subjects.CursorReply))
		var refusal *subjects.Error
		if !errors.As(err, &refusal) || refusal.Reason != subjects.WrongLast {
			if err == nil {
				c.ours[partition] = to
			}
			return err
		}
	}
	return failf(exitFailed, "others move it at the same time")
}

func (c *backupCursor) subject(partition int) string {
	return c.source.conn.names.Cursor(partition, c.name)
}

func (c *backupCursor) get(ctx context.Context, partition int) (uint64, error) {
	var at subjects.CursorReply
	err := c.source.ask(ctx, partition, c.subject(partition), nil, &at)
	return at.Txid, err
}

// isOurs reports whether this backup has put the cursor where it is, or nobody
// has.
func (c *backupCursor) isOurs(ctx context.Context, partition int, at uint64) (bool, error) {
	if known, is := c.ours[partition]; at == 0 || is && known == at {
		return true, nil
	}
	generations, err := c.repository.Generations(ctx)
	if err != nil {
		return false, err
	}
	for _, g := range slices.Backward(generations) {
		m, err := c.repository.Manifest(ctx, g)
		if err != nil {
			continue // it was deleted meanwhile, or is damaged
		}
		if p, has := m.Find(partition); has && p.Last.Txid == at {
			c.ours[partition] = at
			return true, nil
		}
	}
	return false, nil
}
