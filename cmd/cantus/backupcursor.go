package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
)

// backupCursor is the cursor that says, in each partition, how far a backup
// reaches: the last txid that a manifest of it has. Retention policies can hold
// what it has not passed.
//
// Its owner is the backup's id and the writer of the manifest whose end it is
// at. The id goes wherever the backup is copied, and so do manifests; what two
// copies write has different writers. So a cursor is ours if a manifest that we
// have ends there and has that writer. Of two copies the first one that moves
// the cursor has it, and the other is refused: what is in one place only must
// not be trimmed because of the other. It goes forward only.
type backupCursor struct {
	name       string
	source     *backupSource
	repository *backup.Repository
	take       bool                // take it from whoever has it
	ours       map[int]cursorPlace // where this backup has put it, or found it to be its own
}

// cursorPlace is where a cursor is, and whose it is.
type cursorPlace struct {
	txid  uint64
	owner string
}

// cursorOwner returns the owner of a cursor at the end of a manifest. It is the
// id alone if a version wrote it that named no writer.
func cursorOwner(m *backup.Manifest) string {
	if m.Writer == "" {
		return m.ID
	}
	return m.ID + "," + m.Writer
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
			return backup.OfPartition(p, err)
		}
		if _, err := c.isKnown(ctx, p, at); err != nil {
			return backup.OfPartition(p, err)
		}
	}
	return nil
}

// move moves the cursor of partitions, none for all, to the end of the manifest
// that a run has left. It stays in those in which the run has failed, and in
// all of them if it has found damage: the log may be the only good copy.
func (c *backupCursor) move(ctx context.Context, partitions []int, r backup.Result, ran error) error {
	if errors.Is(ran, backup.ErrDamaged) {
		return fmt.Errorf("the cursor %s stays, since the backup is damaged", c.name)
	}
	var failed []error
	m := r.Manifest
	for _, p := range m.Partitions {
		if len(partitions) > 0 && !slices.Contains(partitions, p.Partition) || p.Last.Txid == 0 || m.Generation == 0 {
			continue
		}
		if slices.Contains(r.Failed, p.Partition) {
			failed = append(failed, fmt.Errorf("partition %d: the cursor %s stays", p.Partition, c.name))
			continue
		}
		if err := c.moveOne(ctx, &m, p.Partition, p.Last.Txid); err != nil {
			failed = append(failed, fmt.Errorf("partition %d: the backup is stored, but the cursor %s was not moved: %w", p.Partition, c.name, err))
		}
	}
	return errors.Join(failed...)
}

// cursorTries is how often the cursor is read again because another process has
// moved it.
const cursorTries = 5

func (c *backupCursor) moveOne(ctx context.Context, m *backup.Manifest, partition int, to uint64) (err error) {
	owner := cursorOwner(m)
	for range cursorTries {
		at, err := c.get(ctx, partition)
		if err != nil {
			return err
		}
		isOurs, err := c.isKnown(ctx, partition, at)
		if err != nil {
			return err
		}
		switch {
		case isOurs && (at.Txid > to || at.Txid == to && at.Owner == owner):
			return nil // it is there, or another process has moved it to a newer manifest
		case !isOurs && !c.take:
			return c.refuse(at, m.ID)
		}
		request := subjects.CursorRequest{Txid: &to, Expected: &at.Txid, Owner: &owner, ExpectedOwner: &at.Owner}
		err = c.source.ask(ctx, partition, c.subject(partition), request, new(subjects.CursorReply))
		var refusal *subjects.Error
		switch {
		case errors.As(err, &refusal) && refusal.Reason == subjects.WrongLast:
		case err != nil:
			return err
		default:
			c.ours[partition] = cursorPlace{to, owner}
			return nil
		}
	}
	return failf(exitFailed, "others move it at the same time")
}

// refuse returns the error about a cursor that this backup has not put where it
// is.
func (c *backupCursor) refuse(at subjects.CursorReply, id string) error {
	why := "another backup moves it"
	owner, _, _ := strings.Cut(at.Owner, ",")
	switch owner {
	case "":
		why = "it is no backup's"
	case id:
		why = "another copy of this backup moves it, or this one was run ten times without --cursor since"
	}
	return failf(exitFailed, "it is at %d, where this backup has not put it: %s; give each backup a cursor of its own, "+
		"or, if nothing else uses this one any more, take it over with --take-cursor", at.Txid, why)
}

func (c *backupCursor) subject(partition int) string {
	return c.source.conn.names.Cursor(partition, c.name)
}

func (c *backupCursor) get(ctx context.Context, partition int) (at subjects.CursorReply, err error) {
	err = c.source.ask(ctx, partition, c.subject(partition), nil, &at)
	return at, err
}

// isKnown reports whether a manifest that is there ends where the cursor is and
// has its owner, or the cursor does not exist.
func (c *backupCursor) isKnown(ctx context.Context, partition int, at subjects.CursorReply) (bool, error) {
	where := cursorPlace{at.Txid, at.Owner}
	if known, is := c.ours[partition]; at.Txid == 0 || is && known == where {
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
		if p, has := m.Find(partition); has && p.Last.Txid == at.Txid && (at.Owner == cursorOwner(m) || at.Owner == m.ID) {
			c.ours[partition] = where
			return true, nil
		}
	}
	return false, nil
}
