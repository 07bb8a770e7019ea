package broker

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"

	"github.com/cantuslog/cantus/wal"
)

// The nodes of a cluster share one secret. Every key that they sign or encrypt
// with derives from it: see docs/adr/0018.

// minToken is the least length of a cluster's token, in bytes.
const minToken = 32

// tokenSecret returns the secret that a token stands for.
func tokenSecret(token string) wal.Secret {
	return wal.Secret{Key: deriveKey([]byte(token), "", "cluster secret"), Token: true}
}

// deriveKey returns a key of 32 bytes for a purpose.
func deriveKey(secret []byte, salt, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, secret, []byte(salt), "cantus "+purpose, sha256.Size)
	if err != nil {
		panic(err) // cannot happen: SHA-256 allows this length
	}
	return key
}

func newSecret() wal.Secret {
	s := wal.Secret{Key: make([]byte, wal.SecretSize)}
	_, _ = rand.Read(s.Key) // never fails: see crypto/rand
	return s
}

// routePassword returns the password of route ports that derives from a token,
// "" without a token. It can't depend on the cluster's id: a node that founds
// or joins a cluster does not know it yet. It can't derive from a secret
// without a token for the same reason.
func routePassword(s wal.Secret, cluster string) string {
	if !s.Token {
		return ""
	}
	return hex.EncodeToString(deriveKey(s.Key, cluster, "routes"))
}
