// Package deploy checks what is in the folder deploy: the Helm chart, the
// manifests that come of it, and the container file. It is a module of its own,
// so that the product does not depend on Helm.
package deploy
