package broker

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cantuslog/cantus/wal"
)

// The nodes of a cluster share one secret. Whatever they prove to each other,
// or keep from others, uses a key that derives from it: see docs/adr/0018.

// minToken is the least length of a cluster's token, in bytes.
const minToken = 32

// tokenSecret returns the secret that a token stands for.
func tokenSecret(token string) wal.Secret {
	return wal.Secret{Key: deriveKey([]byte(token), "", "cluster secret"), Token: true}
}

// deriveKey returns 32 bytes for a purpose.
func deriveKey(secret []byte, salt, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, secret, []byte(salt), "cantus "+purpose, sha256.Size)
	if err != nil {
		panic(err) // only for a length that SHA-256 can't give
	}
	return key
}

// derive returns a key of 32 bytes that the members of this cluster share, the
// same for the same purpose, and nobody else has. The data directory is founded
// by then.
func (n *Node) derive(purpose string) []byte {
	return deriveKey(n.secret.Key, n.store.Identity().ID, purpose)
}

// openSecret reads the secret of a data directory that is founded, or gives it
// one if that can be.
func (n *Node) openSecret(dir string) error {
	have, err := wal.ReadSecret(dir)
	if err == nil {
		n.secret = have
		return n.checkToken(dir)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	founders := n.store.Identity().Founders
	_, founded := founders[n.opts.Name]
	switch {
	case n.opts.ClusterSecret != "":
		n.secret = tokenSecret(n.opts.ClusterSecret)
	case len(founders) == 0 || len(founders) == 1 && founded:
		n.secret = wal.Secret{Key: make([]byte, wal.SecretSize)}
		_, _ = rand.Read(n.secret.Key) // never fails, says crypto/rand
	default: // until the founders hand a secret out
		n.secret = tokenSecret(n.store.Identity().ID)
		return nil
	}
	if err := wal.WriteSecret(dir, n.secret); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	return nil
}

// checkToken refuses a token that does not stand for the directory's secret.
func (n *Node) checkToken(dir string) error {
	if n.opts.ClusterSecret == "" || bytes.Equal(tokenSecret(n.opts.ClusterSecret).Key, n.secret.Key) {
		return nil
	}
	return fmt.Errorf("%w: %s holds another cluster secret than the token that was given: give the cluster's own token; "+
		"to change it, stop every node, remove cluster.key from each data directory, and start all with the new one", ErrIdentity, dir)
}
