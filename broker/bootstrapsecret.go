package broker

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cantuslog/cantus/wal"
)

// nominate prepares a directory that belongs to no cluster yet. It gets the
// secret that the token stands for, or a key, for which other nodes wrap the
// secret.
func (b *bootstrap) nominate(dir string) error {
	b.dir = dir
	if b.opts.ClusterSecret != "" {
		return b.keepSecret(dir, tokenSecret(b.opts.ClusterSecret))
	}
	seed, err := wal.NomineeKey(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	private, err := ecdh.X25519().NewPrivateKey(seed)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	b.mu.Lock()
	b.private = private
	b.mu.Unlock()
	if len(b.opts.Bootstrap) == 0 {
		return nil
	}
	// A founder that was stopped earlier may have sent the secret to others
	// already, or proved to them that it has it.
	have, err := wal.ReadSecret(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, wal.ErrDamaged) {
		return nil
	}
	if err == nil && !have.Token {
		b.setSecret(have)
	}
	return err
}

// exchangeSecret brings one secret to all founders, unless they have a token.
// The first founder by name makes it and wraps it for each of the others. Each
// founder writes it down before it proves that it has it, and none founds the
// cluster before all have.
func (b *bootstrap) exchangeSecret(founders map[string]candidate) error {
	if b.opts.ClusterSecret != "" {
		return nil
	}
	maker := slices.Min(b.opts.Bootstrap)
	if b.opts.Name == maker {
		return b.distributeSecret(founders)
	}
	for _, q := range founders {
		if q.proved {
			return nil // the others have this node's secret
		}
	}
	q := founders[maker]
	wrapped := q.Keys[b.opts.Name]
	if wrapped == nil {
		return nil
	}
	s, err := unwrapSecret(wrapped, b.private, wrapContext(b.opts.Cluster, b.opts.Name, b.nodeID))
	if err != nil {
		b.noteRejected("wrapped secret", maker, err)
		return nil
	}
	if s.Token || bytes.Equal(s.Key, b.currentSecret().Key) {
		return nil
	}
	if err := b.keepSecret(b.dir, s); err != nil {
		return err
	}
	b.peers.candidates.resetProofs()
	b.log.Info("received the cluster's secret", "from", maker, "key", fingerprint(b.private.PublicKey().Bytes()))
	b.announce()
	return nil
}

// distributeSecret makes the secret, and wraps it for the founders that have
// none and are configured like this node.
func (b *bootstrap) distributeSecret(founders map[string]candidate) error {
	if b.currentSecret().Key == nil {
		if err := b.keepSecret(b.dir, newSecret()); err != nil {
			return err
		}
	}
	self, changed := b.identity.announcement(), false
	wrapped := map[string][]byte{}
	for name, q := range founders {
		if q.proved || len(q.Key) == 0 || difference(self, q.announcement) != "" {
			continue
		}
		to := q.NodeID + string(q.Key)
		if b.wrappedFor[name] != to {
			box, err := wrapSecret(b.currentSecret(), q.Key, wrapContext(b.opts.Cluster, name, q.NodeID))
			if err != nil {
				b.noteRejected("key", name, err)
				continue
			}
			b.wrappedFor[name], wrapped[name], changed = to, box, true
			b.log.Info("the cluster's secret is sent to a founder", "node", name, "key", fingerprint(q.Key))
			continue
		}
		wrapped[name] = self.Keys[name]
	}
	b.mu.Lock()
	b.wrapped = wrapped
	b.mu.Unlock()
	if changed {
		b.announce()
	}
	return nil
}

// openReply opens the secret in the reply to a node that joins, and writes it
// down. The reply must be signed with that secret. If it is not, waiting says
// what to wait for.
func (b *bootstrap) openReply(e envelope, r joinReply, subject string) (waiting string, err error) {
	if b.opts.ClusterSecret != "" {
		return "", nil // the reply was signed with it
	}
	s, err := unwrapSecret(r.Wrapped, b.private, wrapContext(b.opts.Cluster, b.opts.Name, b.nodeID))
	if err != nil || e.cluster != r.ID || !e.proves(messageKey(s.Key, e.cluster), answerTo(subject)) {
		b.noteRejected("wrapped secret", e.name, err)
		return fmt.Sprintf("an answer of cluster %q that holds its secret", b.opts.Cluster), nil
	}
	return "", b.keepSecret(b.dir, s)
}
