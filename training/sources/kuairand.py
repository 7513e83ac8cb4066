"""KuaiRand-Pure in its official layout. Being written."""
